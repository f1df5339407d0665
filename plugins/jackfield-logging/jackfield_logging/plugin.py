"""The hooks."""

import logging
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from jackfield.hooks import Event, JsonObject, LogRecord, RequestInfo, hookimpl
from jackfield_logging.analysis import Analysis, analyse
from jackfield_logging.conversation import excerpt, passages
from jackfield_logging.journal import Journal, Line
from jackfield_logging.output import LogFile, Output
from jackfield_logging.redaction import Redactor
from jackfield_logging.server_log import ServerLog
from jackfield_logging.settings import Settings
from jackfield_logging.stations import event_line, lines

REMEMBERED = 4096
"""Requests that have been looked at and wait for their record ``received``; beyond that, the oldest is forgotten."""

_Seen = tuple[Analysis | None, dict[str, Any] | None]
_NOTHING: _Seen = (None, None)


class Plugin:
    """Writes a line for each station on a request's way, from `startup` to `shutdown`."""

    def __init__(self) -> None:
        self._settings = Settings()
        self._redactor = Redactor()
        self._journal: Journal | None = None
        self._server_log: ServerLog | None = None
        self._seen: OrderedDict[tuple[str, float], _Seen] = OrderedDict()

    @hookimpl
    def configure(self) -> type[Settings]:
        """The settings under ``[plugins.logging]``."""
        return Settings

    @hookimpl
    def startup(self, config: Settings) -> None:
        """Open the log; on the standard error where the file cannot be written."""
        self._settings = config
        self._redactor = Redactor(config.redact)
        output, warnings = _open(config)
        self._journal = Journal(config, output, self._redactor)
        if config.server_log:
            self._server_log = ServerLog(self._journal, instead=not isinstance(output, LogFile))
        for line in (*warnings, *_reminders(config)):
            self._journal.write(line)

    @hookimpl
    def shutdown(self) -> None:
        """Write what waits, and leave nothing behind."""
        if self._server_log:
            self._server_log.detach()
        if self._journal:
            self._journal.close()
        self._server_log = self._journal = None
        self._seen.clear()

    @hookimpl(trylast=True)
    def transform_request(self, body: JsonObject, request: RequestInfo) -> None:
        """Look at the text, as the other plugins left it, for the line that comes when it has been tokenized."""
        settings = self._settings
        if not self._journal or not (settings.analysis_chars or settings.log_prompts):
            return
        text = passages(body)
        analysis = analyse(text, settings.analysis_chars) if settings.analysis_chars else None
        prompt = excerpt(text, self._redactor, settings.prompt_chars) if settings.log_prompts else None
        self._seen[_key(request)] = analysis, prompt
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    @hookimpl
    def log_record(self, record: LogRecord) -> None:
        """Write the record's lines."""
        if not self._journal:
            return
        analysis, prompt = self._seen.pop(_key(record.request), _NOTHING)
        for line in lines(record, analysis):
            self._journal.write(line)
        if prompt:
            self._journal.write(Line(logging.INFO, "prompt", prompt, record.request.id, record.time))

    @hookimpl
    def on_event(self, event: Event) -> None:
        """Write a line for what no record tells."""
        line = event_line(event)
        if self._journal and line:
            self._journal.write(line)


def _key(request: RequestInfo) -> tuple[str, float]:
    """Clients choose ids, and may choose one twice."""
    return request.id, request.received


def _open(settings: Settings) -> tuple[Output, list[Line]]:
    if settings.file is None:
        return Output(), []
    try:
        return LogFile(settings.file, settings.max_bytes, settings.backups), []
    except (OSError, ValueError) as error:
        advice = ["Set 'file' in [plugins.logging] to a path that the server may write.", "Start the server again."]
        message = f"The log file {settings.file} cannot be written, so lines come here: {error}"
        return Output(), [Line(logging.ERROR, "log_file_failed", {"message": message, "suggestions": advice})]


def _reminders(settings: Settings) -> Iterator[Line]:
    if settings.log_prompts:
        fields = {"message": "Prompts are logged, redacted.", "suggestions": ["To stop it, set log_prompts = false."]}
        yield Line(logging.WARNING, "prompts_are_logged", fields)
