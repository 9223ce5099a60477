"""Bundled adapters: one module each, named as on the command line, holding one subclass of `Adapter`."""
