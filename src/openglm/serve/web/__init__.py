"""The web page: a door that asks for a key, and behind it tabs that call the models directly."""
