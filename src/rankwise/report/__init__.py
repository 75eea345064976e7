"""What people see: terminal tables and a self-contained page."""
