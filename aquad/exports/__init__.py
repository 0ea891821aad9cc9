"""Files for other programs, as they are: the scrape job and the rules of Prometheus. `aquad export` writes them."""
