//! The reference of the resources in Markdown, generated from their schemas.
