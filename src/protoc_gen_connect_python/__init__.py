"""The protoc plugin of connect-python: typed clients and services from a ``.proto``.

It runs when code is generated, never when that code runs. ``options`` reads the parameters, ``model`` turns descriptors
into a plain description with the Python names of ``names``, and ``render`` writes that out with the help of ``imports``
and ``layout``. ``main`` is the program around them.
"""
