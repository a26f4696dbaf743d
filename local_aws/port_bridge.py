"""Make one port of a container without network reachable: a Unix socket outside leads to 127.0.0.1 inside.

Run inside the container: python3 -I -S port_bridge.py SOCKET PORT -- COMMAND ...   Ends with the command's exit code.
"""

import socket
import subprocess
import sys
import threading
from pathlib import Path


def pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while chunk := source.recv(65536):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        target.close()


def serve(listener: socket.socket, port: int) -> None:
    while True:
        outside, _ = listener.accept()
        try:
            inside = socket.create_connection(("127.0.0.1", port))
        except OSError:
            outside.close()  # the command does not listen yet; the caller asks again
            continue
        for source, target in ((outside, inside), (inside, outside)):
            threading.Thread(target=pump, args=(source, target), daemon=True).start()


def main() -> None:
    path, port, _, *command = sys.argv[1:]
    Path(path).unlink(missing_ok=True)  # of the process before, if this one is a restart
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    threading.Thread(target=serve, args=(listener, int(port)), daemon=True).start()
    code = subprocess.call(command)
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
