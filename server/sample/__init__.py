"""A believable shop for the demo and the tests: schema, generated rows, and the reference policy."""
