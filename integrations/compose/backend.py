"""A small HTTP backend: GET / names the container, GET /healthz is 200."""

import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = socket.gethostname()


class Backend(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        found = self.path in ("/", "/healthz")
        body = f"{NAME}\n".encode() if found else b"not found\n"
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass  # The checks of Consul, of pickd and of register.py would fill the log.


ThreadingHTTPServer(("0.0.0.0", 8080), Backend).serve_forever()
