"""What runs on the workstation: requests like QMD sends, checks, and QMD's configuration file."""
