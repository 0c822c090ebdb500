"""Pictures with known ages, and what is measured on them."""
