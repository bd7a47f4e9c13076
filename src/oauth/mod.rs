//! Access tokens of OAuth 2.0 for logins by XOAUTH2 and OAUTHBEARER: by the
//! refresh token of a person (RFC 6749, section 6) or the secret of a client
//! (section 4.4), and the sign-in that gives the first refresh token (RFC
//! 8628).
//!
//! ```text
//! Tokens::get --cached--> access token
//!    \--one renewal for all who wait--> TokenStore: the newest refresh token
//!          --> client: POST, bounded --> answer: token or refusal
//!          --> TokenStore: the refresh token that came instead of it
//! ```

pub mod answer;
pub mod browser;
pub mod client;
pub mod device;
mod error;
mod renewal;
mod tokens;
mod url;

pub use error::Error;
pub(crate) use tokens::check as check_secret;
pub use tokens::{Access, Tokens};
pub use url::Url;
