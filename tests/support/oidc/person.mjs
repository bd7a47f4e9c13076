// A person who was shown an address: opens it, signs in, and agrees.
//   node person.mjs ADDRESS NAME
const [start, name] = process.argv.slice(2);
const cookies = new Map();

async function open(url, form) {
  for (;;) {
    const answer = await fetch(url, {
      redirect: 'manual',
      method: form ? 'POST' : 'GET',
      body: form ? new URLSearchParams(form) : undefined,
      headers: { cookie: [...cookies].map((pair) => pair.join('=')).join('; ') },
    });
    for (const cookie of answer.headers.getSetCookie()) {
      const [, key, value] = /^([^=]*)=([^;]*)/.exec(cookie);
      cookies.set(key, value);
    }
    if (answer.status < 300 || answer.status >= 400) return { url, text: await answer.text() };
    url = new URL(answer.headers.get('location'), url).href;
    form = undefined;
  }
}

let page = await open(start);
for (let forms = 0; forms < 6 && page.text.includes('<form'); forms++) {
  const fields = {};
  for (const [input] of page.text.matchAll(/<input[^>]*>/g)) {
    const field = /name="([^"]*)"/.exec(input);
    if (field) fields[field[1]] = /value="([^"]*)"/.exec(input)?.[1] ?? '';
  }
  if ('login' in fields) Object.assign(fields, { login: name, password: 'any' });
  if ('user_code' in fields) fields.confirm = 'yes';
  delete fields.abort;
  const action = /action="([^"]*)"/.exec(page.text)?.[1].replaceAll('&amp;', '&') ?? '';
  page = await open(new URL(action, page.url).href, fields);
}
if (!page.text.includes('Sign-in Success')) {
  console.error(page.text);
  process.exit(1);
}
