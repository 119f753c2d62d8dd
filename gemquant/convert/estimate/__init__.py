"""Which artifact fits a device, how large it is and how fast it decodes: from headers alone.

Nothing here is measured on the model; every figure says what it was derived from.
"""

from gemquant.convert.estimate.fit import Forecast, Request, forecast
from gemquant.convert.estimate.headers import Headers, read_headers

__all__ = ["Forecast", "Headers", "Request", "forecast", "read_headers"]
