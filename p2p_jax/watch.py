"""The processes of one training watch one another: whoever goes ends the others, with a message that names it.

JAX notices a lost process as well, but late, and ends the others with a stack trace of C++. Here each process holds a
TCP connection to the first, which the system closes with the process, and on which silence means that a host is gone.
"""

import atexit
import contextlib
import dataclasses
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

from p2p_jax.lookup import UserError
from p2p_jax.stop import Stopped

LOST = 75  # exit code where another process went: EX_TEMPFAIL of sysexits.h, starting again may help
_NEWS = 2.0  # seconds until the news of another's end has come
_GRACE = 5.0  # seconds in which a process may end by its own error after another has failed
_HANDSHAKE = 5.0  # seconds for a caller to say who it is
_AGAIN = 'Start all processes again: the training goes on from its latest checkpoint.'


class Peer:
    """The connection to another process, of JSON objects, a line each."""

    def __init__(self, connection: socket.socket, name: str = ''):
        self.name = name
        self._socket = connection
        self._lines = connection.makefile('rb')
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """Sends a message; that nobody is there to hear it is noticed by `receive`."""
        with contextlib.suppress(OSError), self._lock:
            self._socket.sendall(json.dumps(message).encode() + b'\n')

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """Returns the next message, None where the other end is closed.

        Raises:
          TimeoutError: nothing came for so long; the connection cannot be read from any more.
          ValueError: what came is no message.
        """
        self._socket.settimeout(seconds)
        try:
            line = self._lines.readline(2**16)
        except TimeoutError:
            raise
        except OSError:
            return None
        message = json.loads(line) if line else None
        if message is not None and not isinstance(message, dict):
            raise ValueError('not an object')
        return message

    @property
    def hung_up(self) -> bool:
        """Whether a peer that has nothing to say yet has closed its end."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        """Closes the connection, also under a thread that reads from it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@dataclasses.dataclass(frozen=True)
class Place:
    """Which of the processes this one is: `index` of `count`, from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f'process {self.index} of {self.count} ({socket.gethostname()}, pid {os.getpid()})'


def listen(port: int = 0) -> socket.socket:
    """Returns a socket that listens on all interfaces; port 0 takes a free one.

    Raises:
      UserError: the port is taken.
    """
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(('', port))
    except OSError as error:
        raise UserError(f'port {port} of {socket.gethostname()} cannot be opened: {error}. Take another one.') from None


def _greet(connection: socket.socket) -> tuple[int, int, Peer] | None:
    """Returns which process calls, of how many, and the connection; sends away what is no process of a training."""
    peer = Peer(connection)
    try:
        hello = peer.receive(_HANDSHAKE) or {}
        peer.name = str(hello['name'])
        return int(hello['index']), int(hello['count']), peer
    except (TimeoutError, ValueError, KeyError, TypeError):
        peer.close()
        return None


def _mistaken(place: Place, peers: dict[int, Peer], index: int, count: int, name: str) -> str:
    """Returns why a caller cannot be taken among the peers, if it cannot."""
    if count != place.count:
        return f'{name} was started as one of {count} processes, {place} as one of {place.count}'
    if index in peers or index == place.index:
        return f'two processes have the same number: {name} and {peers[index].name if index in peers else place}'
    return ''


def assemble(server: socket.socket, place: Place, seconds: float, **announced: Any) -> dict[int, Peer]:
    """Waits, as the first process, until all others have called; then tells them so, and what is `announced`.

    Raises:
      UserError: some did not call within `seconds`, or they disagree; those that are there are told.
    """
    peers: dict[int, Peer] = {}
    refused: list[Peer] = []
    wrong, deadline = '', time.monotonic() + seconds
    while len(peers) < place.count - 1 and not wrong:
        server.settimeout(max(deadline - time.monotonic(), 1e-3))
        try:
            caller = _greet(server.accept()[0])
        except TimeoutError:
            missing = ', '.join(str(i) for i in range(1, place.count) if i not in peers)
            here = f'{socket.gethostname()}:{server.getsockname()[1]}'
            wrong = f'process {missing} of {place.count} did not come to {here} within {seconds:.0f} s; see its output'
            continue
        # Those that ended while they waited may be started again.
        peers = {index: peer for index, peer in peers.items() if not peer.hung_up}
        if caller and not caller[2].hung_up:
            index, count, peer = caller
            wrong = _mistaken(place, peers, index, count, peer.name)
            if wrong:
                refused = [peer]
            else:
                peers[index] = peer
    for peer in [*peers.values(), *refused]:
        peer.send(**({'refused': wrong} if wrong else {'go': announced, 'name': str(place)}))
    if wrong:
        raise UserError(wrong)
    return peers


def call(addresses: Sequence[tuple[str, int]], place: Place, seconds: float) -> tuple[Peer, dict[str, Any]]:
    """Calls the first process, at the first address that answers, and waits for all others.

    Returns:
      The connection, and what the first process announced.

    Raises:
      UserError: it cannot be reached within `seconds`, is somebody else, or refuses.
    """
    shown = ' or '.join(f'{host}:{port}' for host, port in addresses)
    error: Exception = TimeoutError('timed out')
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        for address in addresses:
            try:
                peer = Peer(socket.create_connection(address, timeout=min(left, _HANDSHAKE)))
            except OSError as failure:
                error = failure
                continue
            peer.send(index=place.index, count=place.count, name=str(place))
            try:
                answer = peer.receive(left + _HANDSHAKE)
            except (TimeoutError, ValueError):
                raise UserError(f'{shown} answers, but not as the first process of a training') from None
            if answer is None:  # it was another's, or the first process ended; perhaps it is started again
                error = ConnectionError('connection closed')
                continue
            if 'refused' in answer:
                raise UserError(answer['refused'])
            peer.name = answer['name']
            return peer, answer['go']
        time.sleep(min(0.5, seconds / 10))
    raise UserError(
        f'{place} could not reach the first process at {shown} within {seconds:.0f} s ({error}). Is process 0 running, '
        'is the address right, and does the network let the port through?'
    )


class Watch:
    """Watches from threads until the context ends. The first process has all others as peers, each other the first."""

    def __init__(self, place: Place, peers: dict[int, Peer], silence: float):
        """
        Args:
          place: of this process.
          peers: by number.
          silence: seconds without a sign of life after which a peer is taken to be gone.
        """
        self._place, self._peers, self._silence = place, peers, silence
        self._left = threading.Event()  # this process has said farewell
        self._trouble = threading.Event()  # a peer has gone, or is about to
        self._gone = {index: threading.Event() for index in peers}
        self._ending = threading.Lock()

    def __enter__(self) -> Self:
        for index, peer in self._peers.items():
            threading.Thread(target=self._hear, args=(index, peer), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Says farewell. After an error the process will end without waiting for the others, as JAX would."""
        if error is None or (isinstance(error, Stopped) and error.agreed):
            self._left.set()
            self._tell(bye=True)
            return
        expected = isinstance(error, UserError)
        if isinstance(error, Exception) and not expected and self._trouble.wait(_NEWS):
            # An operation across processes has failed because another went; then that is what ends this one.
            time.sleep(2 * _GRACE)
        self._left.set()
        self._tell(failed=f'{"error" if expected else type(error).__name__}: {error}')
        code = 2 if expected else error.code if isinstance(error, Stopped) else 1
        # After everything is printed, and before JAX's own farewell, which waits for processes that may be gone.
        atexit.register(self._exit, code)

    def _tell(self, **message: Any) -> None:
        for peer in self._peers.values():
            peer.send(**message)

    def _beat(self) -> None:
        while not self._left.wait(self._silence / 8):
            self._tell(beat=True)

    def _hear(self, index: int, peer: Peer) -> None:
        """Listens to a peer until it says farewell, or this process must end."""
        text = self._verdict(peer)
        self._gone[index].set()
        if text and not self._left.is_set():
            self._end(text)

    def _verdict(self, peer: Peer) -> str:
        """Waits until a peer says farewell or goes; returns why this process must end, nothing after a farewell."""
        while True:
            try:
                message = peer.receive(self._silence)
            except TimeoutError:
                return f'{peer.name} has given no sign of life for {self._silence:.0f} s. {_AGAIN}'
            except ValueError:
                message = None
            if message is None:
                self._trouble.set()
                return f'{peer.name} is gone: killed, or its host is; see its output. {_AGAIN}'
            if 'bye' in message:
                return ''
            if 'lost' in message:
                return message['lost']
            if 'failed' in message:
                self._trouble.set()
                # Most errors strike all processes, and then each tells its own.
                if not self._left.wait(_GRACE):
                    return f'{peer.name} ended with {message["failed"]}'

    def _end(self, text: str) -> None:
        """Ends this process, and through it the others."""
        with self._ending:
            self._tell(lost=text)
            sys.stdout.flush()
            os.write(2, f'error: {text}\n'.encode())
            self._exit(LOST)

    def _exit(self, code: int) -> None:
        """Ends at once; the first process last, since without it JAX ends the others with a stack trace."""
        sys.stdout.flush()
        sys.stderr.flush()
        deadline = time.monotonic() + 2 * _GRACE if self._place.index == 0 else 0.0
        for gone in self._gone.values():
            gone.wait(max(deadline - time.monotonic(), 0))
        os._exit(code)
