"""What a command does when it needs several parts of the library."""
