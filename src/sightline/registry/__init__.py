"""What a method is: its declaration, its parameters, its result, its progress."""
