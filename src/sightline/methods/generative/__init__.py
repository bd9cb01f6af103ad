"""What would make the network respond so?"""
