"""Models in use: whom a request asks for stays in memory until it has been answered."""

from contextlib import ExitStack

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from jackfield.models.registry import Loan, ServedModel


class Borrowing:
    """Ends a request's loans when its answer has been sent, whole, or the client has hung up."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        with ExitStack() as loans:
            scope.setdefault("state", {})["loans"] = loans
            await self._app(scope, receive, send)


async def borrow(request: Request, name: str | None) -> ServedModel:
    """The model that a request asks for, loaded if need be.

    Raises:
        ModelNotFoundError: there is none of that name.
        InvalidRequestError: there are several, and none was named.
        ModelLoadError: it cannot be loaded.
        UnavailableError: there is no room for it at the moment.
    """
    loan: Loan = await request.app.state.registry.lend(name)
    loans: ExitStack = request.state.loans
    loans.callback(loan.end)
    return loan.model
