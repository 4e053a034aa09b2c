"""One run: trained, resumed, evaluated; its folder and the record of each of its files."""
