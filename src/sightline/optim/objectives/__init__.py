"""What is increased: objectives, their algebra and their formula."""
