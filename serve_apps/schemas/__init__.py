"""The shapes of REST bodies and answers; the OpenAPI document is made of them. Unknown fields are ignored."""
