"""Images changed so that the network misclassifies them."""
