"""Starting services: settings → plan → engine → wait → diagnose."""
