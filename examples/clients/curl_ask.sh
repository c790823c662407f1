#!/usr/bin/env bash
# Ask a running server about a picture with curl: bash examples/clients/curl_ask.sh PICTURE PROMPT [ADDRESS]
#
# Everything goes through pipes, since a picture is longer than a command may be. Needs curl and jq.
set -euo pipefail
[ $# -ge 2 ] || { sed -n 2p "$0" >&2; exit 2; }
picture=$1 prompt=$2 address=${3:-http://127.0.0.1:7860}
api() {
    curl --silent --show-error --fail-with-body "${address%/}/v1/$1" \
        --header "Authorization: Bearer ${LLAVA_API_KEY:-none}" "${@:2}"
}

model=$(api models | jq --raw-output '.data[0].id')

base64 < "$picture" | tr -d '\n' |
    jq --raw-input --arg model "$model" --arg prompt "$prompt" '{
        model: $model,
        temperature: 0,
        messages: [{role: "user", content: [
            {type: "image_url", image_url: {url: "data:image/*;base64,\(.)"}},
            {type: "text", text: $prompt}
        ]}]
    }' |
    api chat/completions --header "Content-Type: application/json" --data-binary @- |
    jq --raw-output '.choices[0].message.content'
