"""Makes Yahoo Finance's symbol from an exchange and a symbol. Pure.

Source: suffix table by market identifier code as in yfinance 1.7.0; index and currency symbols as
Yahoo Finance shows them.
"""

from __future__ import annotations

SUFFIX_BY_MIC: dict[str, str] = {
    # Americas
    **dict.fromkeys(("XNYS", "XNAS"), ""),
    **{"XCBT": "CBT", "XCME": "CME", "IFUS": "NYB", "CECS": "CMX", "XNYM": "NYM"},
    **{"XTSE": "TO", "XTSX": "V", "CNSX": "CN", "NEOE": "NE", "XMEX": "MX", "BVMF": "SA"},
    **{"XBUE": "BA", "XSGO": "SN", "XBOG": "CL", "XCAR": "CR"},
    # Asia and the Pacific
    **{"XNSE": "NS", "XBOM": "BO", "XSHG": "SS", "XSHE": "SZ", "XHKG": "HK", "XTKS": "T"},
    **{"XKRX": "KS", "KQKS": "KQ", "XTAI": "TW", "ROCO": "TWO", "XSES": "SI", "XKLS": "KL"},
    **{"XIDX": "JK", "XBKK": "BK", "XPHS": "PS", "XSTC": "VN", "XASX": "AX", "XAUS": "XA", "XNZE": "NZ"},
    # Europe
    **{"XLON": "L", "ILSE": "IL", "AQXE": "AQ", "XCHI": "XC", "XDUB": "IR", "XPAR": "PA", "XAMS": "AS"},
    **{"XBRU": "BR", "XLIS": "LS", "BMEX": "MC", "MTAA": "MI", "EUTL": "TI", "XSWX": "SW", "XETR": "DE"},
    **{"XFRA": "F", "XBER": "BE", "XBMS": "BM", "XDUS": "DU", "XHAM": "HM", "XHAN": "HA", "XMUN": "MU"},
    **{"XSTU": "SG", "XVIE": "VI", "XPRA": "PR", "XWAR": "WA", "XBUD": "BD", "XBSE": "RO", "XATH": "AT"},
    **{"XIST": "IS", "CEUX": "XD", "XEUR": "NX", "XSTO": "ST", "XOSL": "OL", "XCSE": "CO", "XHEL": "HE"},
    **{"XICE": "IC", "XTAL": "TL", "XRIS": "RG", "XVIL": "VS"},
    # Middle East and Africa
    **{"XTAE": "TA", "XSAU": "SR", "XQAT": "QA", "XKFE": "KW", "XDFM": "AE", "XCAI": "CA", "XJSE": "JO"},
}
"""Yahoo's suffix of each market identifier code, empty where Yahoo writes none."""

MIC_BY_EXCHANGE: dict[str, str] = {
    "NASDAQ": "XNAS",
    "NYSE": "XNYS",
    # Yahoo writes NYSE Arca listings as it writes those of New York.
    "ARCA": "XNYS",
    "NSE": "XNSE",
    "BSE": "XBOM",
}
"""The market behind each of our exchange codes that Yahoo knows by a suffix."""

INDEX_SYMBOLS: dict[str, str] = {
    "NSE:NIFTY": "^NSEI",
    "NSE:BANKNIFTY": "^NSEBANK",
    "NSE:FINNIFTY": "NIFTY_FIN_SERVICE.NS",
    "NSE:INDIAVIX": "^INDIAVIX",
    "BSE:SENSEX": "^BSESN",
    "INDEX:SPX": "^GSPC",
    "INDEX:DJI": "^DJI",
    "INDEX:IXIC": "^IXIC",
    "INDEX:NDX": "^NDX",
    "INDEX:RUT": "^RUT",
    "INDEX:VIX": "^VIX",
    "INDEX:FTSE": "^FTSE",
    "INDEX:N225": "^N225",
}
"""Indices whose name at Yahoo is not our symbol with a caret before it."""

_NOT_AT_YAHOO = frozenset({"NFO", "BFO", "MCX", "CDS"})
_DERIVATIVES = frozenset({"future", "option"})


def suffixed(symbol: str, mic: str) -> str:
    """Return the symbol with the suffix of its market. Raises `KeyError` for a market not in the table."""
    suffix = SUFFIX_BY_MIC[mic]
    return f"{symbol}.{suffix}" if suffix else symbol.replace(".", "-")


def yahoo_symbol(exchange: str, symbol: str, asset_class: str) -> str | None:
    """Return Yahoo's symbol of an instrument, None where Yahoo has no such thing.

    Share classes of US listings have a dash (`BRK.B` is `BRK-B`), currency pairs `=X`, indices a
    caret. Exchange-traded derivatives are not made: their names at Yahoo must be given.
    """
    if exchange in _NOT_AT_YAHOO or asset_class in _DERIVATIVES:
        return None
    if asset_class == "index":
        known = INDEX_SYMBOLS.get(f"{exchange}:{symbol}")
        return known or (f"^{symbol}" if exchange == "INDEX" else None)
    if exchange == "FX":
        return f"{symbol}=X"
    if exchange == "CRYPTO":
        return symbol
    mic = MIC_BY_EXCHANGE.get(exchange)
    return suffixed(symbol, mic) if mic is not None else None
