"""One login at GNU SASL's library, as a filter: base64 in, base64 out.

    gsasl_server.py MECHANISM PASSWORD [TLS-EXPORTER in base64]

Each line that it reads is a response of the client's. It answers with `+`
and a challenge, with `ok USER`, or with `no` and the library's words.
"""

import ctypes
import sys

AUTHID, PASSWORD, CB_TLS_EXPORTER = 1, 3, 25
OK, NEEDS_MORE = 0, 1

gsasl = ctypes.CDLL("libgsasl.so.18")
gsasl.gsasl_strerror.restype = ctypes.c_char_p
gsasl.gsasl_property_fast.restype = ctypes.c_char_p
context, session = ctypes.c_void_p(), ctypes.c_void_p()
assert gsasl.gsasl_init(ctypes.byref(context)) == OK
assert gsasl.gsasl_server_start(context, sys.argv[1].encode(), ctypes.byref(session)) == OK
gsasl.gsasl_property_set(session, PASSWORD, sys.argv[2].encode())
if len(sys.argv) > 3:
    gsasl.gsasl_property_set(session, CB_TLS_EXPORTER, sys.argv[3].encode())

for line in sys.stdin:
    out = ctypes.c_char_p()
    result = gsasl.gsasl_step64(session, line.strip().encode(), ctypes.byref(out))
    challenge = (out.value or b"").decode()
    if result == OK and not challenge:
        print("ok", gsasl.gsasl_property_fast(session, AUTHID).decode(), flush=True)
    elif result in (OK, NEEDS_MORE):
        # The last one, too, is sent as a challenge, and answered by nothing.
        print("+", challenge, flush=True)
        if result == OK:
            sys.stdin.readline()
            print("ok", gsasl.gsasl_property_fast(session, AUTHID).decode(), flush=True)
    else:
        print("no", gsasl.gsasl_strerror(result).decode(), flush=True)
