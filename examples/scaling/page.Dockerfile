# The page and the APIs without a model of their own: nothing of torch is installed.
FROM python:3.12-slim
WORKDIR /app
COPY requirements.txt .
RUN grep -vE '^(torch|transformers|accelerate|bitsandbytes|tokenizers|llguidance|spaces|pytest)\b' requirements.txt > page.txt \
    && pip install --no-cache-dir -r page.txt
COPY app.py .
COPY llava_demo llava_demo
COPY examples/examples.json examples/*.png examples/
RUN useradd page
USER page
CMD ["python", "app.py", "--engine", "remote"]
