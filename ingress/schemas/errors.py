"""How errors look, one model for each dialect. `ingress.dialects` writes them."""

from pydantic import BaseModel, ConfigDict


class ErrorResponse(BaseModel):
    """AUTOMATIC1111's."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": "InvalidRequest",
                    "detail": "steps: 151 is not allowed. Allowed: 1 to 150.",
                    "body": "",
                    "errors": "",
                }
            ]
        }
    )

    error: str
    """What kind of error it is."""
    detail: str
    body: str
    errors: str
    """More of the same, or empty."""


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    """The field that is wrong."""
    code: str
    request_id: str


class OpenAIErrorResponse(BaseModel):
    """OpenAI's."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "message": "steps: 151 is not allowed. Allowed: 1 to 150.",
                        "type": "invalid_request_error",
                        "param": "steps",
                        "code": "invalid_request",
                        "request_id": "5c9a9e0f4f0c4b7d8a3e1f2a6b7c8d9e",
                    }
                }
            ]
        }
    )

    error: OpenAIError
