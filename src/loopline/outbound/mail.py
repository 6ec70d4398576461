"""One e-mail to the outside: by the administrator's mail server, within a deadline.

The server's address is a setting and may be private; who is written to comes from people, so that an address is checked
for everything that could begin a header or a second recipient.
"""

import smtplib
import ssl
import time
from collections.abc import Callable, Mapping
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

from loopline.config import mail_server
from loopline.domain.notifications import check_mail
from loopline.errors import InvalidInput, Timeout, Unavailable
from loopline.outbound.http import Answer

MAX_SUBJECT = 200


class Mailer:
    """Sends e-mail. ``tls`` is for tests: a certificate authority of their own."""

    def __init__(
        self,
        url: str,
        sender: str,
        *,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = mail_server(url)
        self._sender = sender or f"loopline@{self._server.host}"
        self._tls = tls
        self._clock = clock

    def send(self, to: str, subject: str, text: str, headers: Mapping[str, str], timeout: float = 10.0) -> Answer:
        """Hand one message to the mail server; the answer's status is the server's (250).

        Raises ``InvalidInput`` where asking again would not help (a recipient or a login that is refused for good),
        else ``Unavailable`` or ``Timeout``.
        """
        message = EmailMessage()
        message["From"], message["To"] = self._sender, check_mail(to)
        message["Subject"] = " ".join(subject.split())[:MAX_SUBJECT]
        message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain=self._sender.rpartition("@")[2])
        for name, value in headers.items():
            message[name] = value
        message.set_content(text)
        begun = self._clock()
        try:
            self._hand_over(message, timeout)
        except smtplib.SMTPRecipientsRefused as error:
            code, said = next(iter(error.recipients.values()))
            raise _failure(code, said) from None
        except smtplib.SMTPResponseException as error:
            raise _failure(error.smtp_code, error.smtp_error) from None
        except TimeoutError:
            raise Timeout(f"the mail server {self._place} did not answer within {timeout:g} s") from None
        except (OSError, smtplib.SMTPException) as error:
            raise Unavailable(f"the mail server {self._place} cannot be asked: {error}") from None
        return Answer(250, b"accepted", self._clock() - begun, {})

    @property
    def _place(self) -> str:
        return f"{self._server.host}:{self._server.port}"

    def _hand_over(self, message: EmailMessage, timeout: float) -> None:
        server = self._server
        context = self._tls or ssl.create_default_context()
        name = self._sender.rpartition("@")[2]  # else the name service is asked for one
        if server.scheme == "smtps":
            client: smtplib.SMTP = smtplib.SMTP_SSL(
                server.host, server.port, timeout=timeout, context=context, local_hostname=name
            )
        else:
            client = smtplib.SMTP(server.host, server.port, timeout=timeout, local_hostname=name)
        with client:
            client.ehlo()
            secure = server.scheme == "smtps"
            if not secure and client.has_extn("starttls"):
                client.starttls(context=context)
                secure = True
            if server.user:
                if not secure:
                    raise smtplib.SMTPNotSupportedError("it offers no TLS, and a password is not sent in the clear")
                client.login(server.user, server.password)
            client.send_message(message)


def _failure(code: int, said: bytes | str) -> InvalidInput | Unavailable:
    """What a refusal is: 5xx is for good, 4xx for now."""
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    told = f"the mail server answered {code} {text[:200]}"
    return InvalidInput(told) if code >= 500 else Unavailable(told)
