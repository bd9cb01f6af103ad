"""What are the weights?"""
