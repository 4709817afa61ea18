"""What each library does of a case. A side runs in a process of its own, in its library's environment."""
