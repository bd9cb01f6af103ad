"""What pictures come out of it?"""
