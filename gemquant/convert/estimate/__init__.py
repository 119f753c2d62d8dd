"""`gemquant plan`: which artifact fits a device, its size and decoding speed, from headers alone.

Nothing here is measured on the model; every figure names what it was derived from.
"""
