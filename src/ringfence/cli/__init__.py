"""The command line. It acts only through :mod:`ringfence.client`; what it prints is for people, or JSON."""
