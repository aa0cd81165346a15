//! Requests to targets and to discovery services: TLS, credentials, proxies.

use crate::config::{HttpConfig, TlsConfig};
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, Identity, Proxy, RequestBuilder};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// A client with the credentials of a configuration. Secrets from files are read at each request,
/// so that they may be renewed.
#[derive(Clone)]
pub struct HttpClient {
    client: Client,
    config: Arc<HttpConfig>,
    folder: PathBuf,
    token: Arc<Mutex<Option<(String, Instant)>>>,
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient").finish_non_exhaustive()
    }
}

fn read(folder: &Path, path: &Path) -> Result<String, String> {
    let full = folder.join(path);
    std::fs::read_to_string(&full)
        .map(|s| s.trim().to_owned())
        .map_err(|e| format!("unable to read file {}: {e}", full.display()))
}

fn either(
    folder: &Path,
    value: Option<&String>,
    file: Option<&PathBuf>,
) -> Result<Option<String>, String> {
    match (value, file) {
        (Some(v), _) => Ok(Some(v.clone())),
        (None, Some(f)) => read(folder, f).map(Some),
        (None, None) => Ok(None),
    }
}

fn with_tls(
    mut b: reqwest::ClientBuilder,
    tls: &TlsConfig,
    folder: &Path,
) -> Result<reqwest::ClientBuilder, String> {
    if let Some(ca) = either(folder, tls.ca.as_ref(), tls.ca_file.as_ref())? {
        let list = Certificate::from_pem_bundle(ca.as_bytes()).map_err(|e| format!("ca: {e}"))?;
        b = b.tls_certs_only(list);
    }
    let cert = either(folder, tls.cert.as_ref(), tls.cert_file.as_ref())?;
    let key = either(folder, tls.key.as_ref(), tls.key_file.as_ref())?;
    match (cert, key) {
        (Some(c), Some(k)) => {
            let both = format!("{c}\n{k}\n");
            let id =
                Identity::from_pem(both.as_bytes()).map_err(|e| format!("certificate: {e}"))?;
            b = b.identity(id);
        }
        (None, None) => {}
        _ => return Err("tls_config needs both a certificate and a key".into()),
    }
    if tls.insecure_skip_verify {
        b = b.tls_danger_accept_invalid_certs(true);
    }
    Ok(b)
}

impl HttpClient {
    /// Builds a client; relative paths start from `folder`.
    ///
    /// # Errors
    /// When a certificate, key or proxy address cannot be used.
    pub fn new(config: &HttpConfig, folder: &Path) -> Result<Self, String> {
        Self::build(config, folder, None, None)
    }

    /// Like [`Self::new`], for addresses that are not the administrator's: hosts are resolved by
    /// the given resolver, and redirects are not followed.
    ///
    /// # Errors
    /// See [`Self::new`].
    pub fn guarded(
        config: &HttpConfig,
        folder: &Path,
        resolver: Arc<dyn reqwest::dns::Resolve>,
    ) -> Result<Self, String> {
        Self::build(config, folder, None, Some(resolver))
    }

    /// Like [`Self::new`]; all requests go to a socket in the file system, if one is given.
    ///
    /// # Errors
    /// See [`Self::new`].
    pub fn with_socket(
        config: &HttpConfig,
        folder: &Path,
        socket: Option<&Path>,
    ) -> Result<Self, String> {
        Self::build(config, folder, socket, None)
    }

    fn build(
        config: &HttpConfig,
        folder: &Path,
        socket: Option<&Path>,
        resolver: Option<Arc<dyn reqwest::dns::Resolve>>,
    ) -> Result<Self, String> {
        // Several libraries may have installed it first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut b = Client::builder()
            .user_agent(concat!("observatory/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .pool_idle_timeout(Duration::from_secs(300));
        b = match &config.proxy_url {
            Some(url) => {
                let mut proxy = Proxy::all(url).map_err(|e| format!("proxy_url: {e}"))?;
                if let Some(none) = &config.no_proxy {
                    proxy = proxy.no_proxy(reqwest::NoProxy::from_string(none));
                }
                b.proxy(proxy)
            }
            None => b.no_proxy(),
        };
        if let Some(path) = socket {
            b = b.unix_socket(path);
        }
        if config.follow_redirects == Some(false) || resolver.is_some() {
            b = b.redirect(reqwest::redirect::Policy::none());
        }
        if let Some(r) = resolver {
            b = b.dns_resolver(r);
        }
        b = with_tls(b, &config.tls_config, folder)?;
        let client = b.build().map_err(|e| e.to_string())?;
        let token = Arc::default();
        Ok(Self { client, config: Arc::new(config.clone()), folder: folder.to_owned(), token })
    }

    /// Starts a GET with the credentials.
    ///
    /// # Errors
    /// When a secret's file cannot be read or no token is given.
    pub async fn get(&self, url: &str) -> Result<RequestBuilder, String> {
        self.authorize(self.client.get(url)).await
    }

    /// Starts a POST with the credentials.
    ///
    /// # Errors
    /// See [`Self::get`].
    pub async fn post(&self, url: &str) -> Result<RequestBuilder, String> {
        self.authorize(self.client.post(url)).await
    }

    /// Starts a request with the credentials.
    ///
    /// # Errors
    /// See [`Self::get`].
    pub async fn request(
        &self,
        method: reqwest::Method,
        url: &str,
    ) -> Result<RequestBuilder, String> {
        self.authorize(self.client.request(method, url)).await
    }

    async fn authorize(&self, mut r: RequestBuilder) -> Result<RequestBuilder, String> {
        let (c, folder) = (&*self.config, self.folder.as_path());
        for (name, values) in &c.http_headers {
            let files =
                values.files.iter().map(|f| read(folder, f)).collect::<Result<Vec<_>, _>>()?;
            for v in values.values.iter().chain(&values.secrets).chain(&files) {
                let name = HeaderName::try_from(name.as_str()).map_err(|e| e.to_string())?;
                r = r.header(name, v);
            }
        }
        if let Some(b) = &c.basic_auth {
            let user = either(
                folder,
                Some(&b.username).filter(|u| !u.is_empty()),
                b.username_file.as_ref(),
            )?;
            let password = either(folder, b.password.as_ref(), b.password_file.as_ref())?;
            return Ok(r.basic_auth(user.unwrap_or_default(), password));
        }
        let (kind, token) = if let Some(a) = &c.authorization {
            let token = either(folder, a.credentials.as_ref(), a.credentials_file.as_ref())?;
            (a.kind.as_str(), token)
        } else if c.oauth2.is_some() {
            ("Bearer", Some(self.oauth_token().await?))
        } else {
            let token = either(folder, c.bearer_token.as_ref(), c.bearer_token_file.as_ref())?;
            ("Bearer", token)
        };
        if let Some(token) = token {
            let mut value = HeaderValue::try_from(format!("{kind} {token}"))
                .map_err(|_| "credentials contain characters that no header takes".to_owned())?;
            value.set_sensitive(true);
            r = r.header(AUTHORIZATION, value);
        }
        Ok(r)
    }

    /// Returns a token of the client-credentials flow, kept until shortly before it ends.
    async fn oauth_token(&self) -> Result<String, String> {
        const EARLY: Duration = Duration::from_secs(10);
        let mut kept = self.token.lock().await;
        if let Some((token, until)) = &*kept
            && *until > Instant::now()
        {
            return Ok(token.clone());
        }
        let Some(o) = &self.config.oauth2 else { return Err("no oauth2 settings".into()) };
        let secret = either(&self.folder, o.client_secret.as_ref(), o.client_secret_file.as_ref())?;
        let mut form: Vec<(&str, String)> = vec![("grant_type", "client_credentials".into())];
        if !o.scopes.is_empty() {
            form.push(("scope", o.scopes.join(" ")));
        }
        form.extend(o.endpoint_params.iter().map(|(n, v)| (n.as_str(), v.clone())));
        let fail = |e: reqwest::Error| format!("oauth2: {}", e.without_url());
        let answer = self
            .client
            .post(&o.token_url)
            .basic_auth(&o.client_id, secret)
            .form(&form)
            .timeout(Duration::from_secs(10))
            .send()
            .await
            .map_err(fail)?
            .error_for_status()
            .map_err(fail)?;
        let body: serde_json::Value = answer.json().await.map_err(fail)?;
        let token =
            body.get("access_token").and_then(|t| t.as_str()).unwrap_or_default().to_owned();
        if token.is_empty() {
            return Err("oauth2: the answer holds no access_token".into());
        }
        let seconds = body.get("expires_in").and_then(serde_json::Value::as_u64).unwrap_or(3600);
        let until = Instant::now() + Duration::from_secs(seconds).saturating_sub(EARLY);
        *kept = Some((token.clone(), until));
        Ok(token)
    }
}

/// Reads a body up to a limit, in bytes.
///
/// # Errors
/// When it is longer or the connection breaks.
pub async fn read_body(mut answer: reqwest::Response, max: usize) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| e.without_url().to_string())? {
        if out.len() + chunk.len() > max {
            return Err("body size limit exceeded".into());
        }
        out.extend_from_slice(&chunk);
    }
    Ok(out)
}
