"""What does the network respond to in this input?"""
