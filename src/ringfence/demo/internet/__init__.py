"""The demo's internet: places, sites and services, and a witness of everything that reaches them."""
