"""All images of a dataset by their features: nearest neighbours, and a map."""
