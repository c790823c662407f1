"""Tag a picture with OpenAI's client: the answer is JSON of a form that the program knows, whatever the model says.

pip install openai && python -m examples.clients.tags PICTURE [ADDRESS]
"""

import base64
import os
import sys
from pathlib import Path
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel, Field

Subject = Literal["animal", "building", "drawing", "food", "landscape", "people", "plant", "text", "vehicle"]


class Tags(BaseModel):
    subjects: list[Subject] = Field(min_length=1, max_length=3)
    place: Literal["indoors", "outdoors", "neither"]
    people: int = Field(ge=0, le=99)


def main(picture: str, address: str = "http://127.0.0.1:7860") -> None:
    url = f"data:;base64,{base64.b64encode(Path(picture).read_bytes()).decode()}"
    text = (
        "What is in this picture? Answer in JSON: its subjects, whether it was taken indoors, how many people it shows."
    )
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    with OpenAI(base_url=f"{address.rstrip('/')}/v1", api_key=os.environ.get("LLAVA_API_KEY", "none")) as client:
        answer = client.chat.completions.parse(
            model="llava",
            messages=[{"role": "user", "content": content}],  # type: ignore[list-item,misc]
            response_format=Tags,
            temperature=0,
        )
    tags = answer.choices[0].message.parsed
    assert tags is not None
    print(tags.model_dump_json())


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
