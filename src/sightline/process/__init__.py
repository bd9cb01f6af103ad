"""What the whole process shares: locks between its threads, and the memory it keeps."""
