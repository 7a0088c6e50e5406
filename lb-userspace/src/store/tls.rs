//! The one provider of cryptography for every TLS connection of this program.

/// Makes it the process's default; once is enough, again does no harm.
pub fn provide() {
    // An error says that there is a default already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
