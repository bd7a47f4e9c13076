// An OAuth 2.0 provider on a loopback port, whose access tokens are JSON web
// tokens signed by a key that the mail server has, too.
//   node provider.mjs PORT KEY
// Clients: `rpop`, by whom people sign in with a device code, and whose refresh
// tokens are good once; `machine`, which asks in its own name.
import { createSecretKey } from 'node:crypto';
import { Provider } from 'oidc-provider';

const [port, key] = process.argv.slice(2);
const sign = { alg: 'HS256', key: createSecretKey(Buffer.from(key)) };
const none = { redirect_uris: [], response_types: [] };
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    {
      ...none,
      client_id: 'rpop',
      application_type: 'native',
      token_endpoint_auth_method: 'none',
      grant_types: ['urn:ietf:params:oauth:grant-type:device_code', 'refresh_token'],
    },
    {
      ...none,
      client_id: 'machine',
      client_secret: 's3 cret/',
      token_endpoint_auth_method: 'client_secret_basic',
      grant_types: ['client_credentials'],
    },
  ],
  scopes: ['openid', 'offline_access', 'pop'],
  rotateRefreshToken: true,
  issueRefreshToken: async () => true,
  findAccount: async (_, id) => ({ accountId: id, claims: async () => ({ sub: id }) }),
  // Dovecot knows the older of the two types of a header.
  formats: { customizers: { jwt: (_, __, jwt) => { jwt.header = { ...jwt.header, typ: 'JWT' }; } } },
  features: {
    deviceFlow: { enabled: true },
    clientCredentials: { enabled: true },
    devInteractions: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => 'urn:mail',
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        scope: 'pop',
        audience: 'urn:mail',
        accessTokenFormat: 'jwt',
        accessTokenTTL: 3600,
        jwt: { sign },
      }),
    },
  },
  cookies: { keys: ['for a test'] },
});
provider.on('server_error', (_, error) => console.error(error));
provider.listen(Number(port), '127.0.0.1', () => console.log('it listens'));
