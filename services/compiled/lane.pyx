"""From a packet of one instrument to its normalised tick."""
from services.compiled.slots cimport get, offset_of, put
from services.market_data.records import DataIngestionFormat
cdef Py_ssize_t AT_PRICE = offset_of(DataIngestionFormat, "price")
def price(o): return get(o, AT_PRICE)
def set_price(o, v): put(o, AT_PRICE, v)
