"""Networks of other libraries, and the preprocessing that comes with them."""
