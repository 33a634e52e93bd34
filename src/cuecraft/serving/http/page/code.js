// A request as code that sends it again. A token is read from the environment: it does not belong in a shell's history.

const VARIABLE = "CUECRAFT_TOKEN";
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`; // for a POSIX shell

function curl(address, body, hasToken) {
  const token = hasToken ? ` \\\n  -H "Authorization: Bearer $${VARIABLE}"` : "";
  return `curl ${quoted(address)}${token} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted(JSON.stringify(body))}\n`;
}

// What JSON.stringify writes of texts, lists and objects of them is Python, too.
function python(address, body, hasToken) {
  const token = hasToken ? `headers["Authorization"] = "Bearer " + os.environ["${VARIABLE}"]\n` : "";
  return `import json
${hasToken ? "import os\n" : ""}import urllib.request

body = ${JSON.stringify(body, null, 4)}
headers = {"Content-Type": "application/json"}
${token}request = urllib.request.Request(${JSON.stringify(address)}, json.dumps(body).encode(), headers)
with urllib.request.urlopen(request) as response:
    for result in json.load(response)["results"]:
        print(json.dumps(result, ensure_ascii=False))
`;
}

export const WRITERS = { curl, python };
