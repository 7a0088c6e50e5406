//! Asking Prometheus over its HTTP API: instant queries, with everything that can come instead of one good number told apart.
//!
//! Owns: the form of the API (`/api/v1/query`, stable since Prometheus 2.0). Refuses to know: what a value is compared with.
//! Invariant: only a finite number that is the one series of the answer is a value; nothing else ever becomes zero.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hyper::{Method, body::Bytes, header};
use serde::Deserialize;

use super::{
    http::{self, HttpError},
    scale::Missing,
};

/// Bytes of an answer, at most.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Series of an answer, at most.
pub const SERIES_MAX: usize = 10_000;

/// A Prometheus server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prometheus {
    /// `http://HOST:PORT[/PREFIX]`, without a final slash.
    url: String,
    timeout: Duration,
}

/// One series of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value; may be NaN or infinite.
    pub value: f64,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum QueryError {
    /// It cannot be reached, or not in time.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// It refused the expression, or could not work it out.
    #[error("Prometheus refused: {kind}: {message}")]
    Refused {
        /// Its word for the kind of error (`bad_data`, `timeout`, `execution`, ...).
        kind: String,
        /// Its words.
        message: String,
    },
    /// It answered something else than the API promises.
    #[error("the answer is not Prometheus': status {status}, {why}")]
    Unreadable {
        /// HTTP status.
        status: u16,
        /// What is wrong.
        why: String,
    },
    /// The expression gives no instant vector or scalar.
    #[error("the expression gives a {0}, not a number or an instant vector")]
    Kind(String),
    /// More series than anybody can mean.
    #[error("the expression gives {0} series, more than {SERIES_MAX}")]
    TooMany(usize),
}

#[derive(Deserialize)]
struct Envelope {
    status: String,
    data: Option<Data>,
    #[serde(default, rename = "errorType")]
    error_type: String,
    #[serde(default)]
    error: String,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "resultType")]
    result_type: String,
    result: serde_json::Value,
}

#[derive(Deserialize)]
struct Vector {
    #[serde(default)]
    metric: BTreeMap<String, String>,
    /// A time and a number as text.
    value: (f64, String),
}

impl Prometheus {
    /// The server at `url`, which may have a path before `/api`.
    ///
    /// # Errors
    /// [`HttpError::Url`].
    pub fn new(url: &str, timeout: Duration) -> Result<Self, HttpError> {
        http::check(url)?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), timeout })
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What `expr` gives now.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn query(&self, expr: &str) -> Result<Vec<Series>, QueryError> {
        let form = header::HeaderValue::from_static("application/x-www-form-urlencoded");
        // The server gives up when nobody listens any more.
        let body = format!("query={}&timeout={}ms", http::escaped(expr), self.timeout.as_millis());
        let answer = http::ask(http::Ask {
            method: Method::POST,
            url: &format!("{}/api/v1/query", self.url),
            headers: vec![(header::CONTENT_TYPE, form)],
            body: Bytes::from(body),
            timeout: self.timeout,
            bytes_max: ANSWER_BYTES_MAX,
        })
        .await?;
        read(answer.status, &answer.body)
    }
}

/// Reads an answer of the API.
fn read(status: u16, body: &[u8]) -> Result<Vec<Series>, QueryError> {
    let unreadable = |why: String| QueryError::Unreadable { status, why };
    let envelope: Envelope = serde_json::from_slice(body).map_err(|e| unreadable(e.to_string()))?;
    if envelope.status != "success" {
        return Err(QueryError::Refused { kind: envelope.error_type, message: envelope.error });
    }
    let data = envelope.data.ok_or_else(|| unreadable("there is no data in it".to_owned()))?;
    let number = |text: &str| text.parse::<f64>().map_err(|_| unreadable(format!("{text:?} is no number")));
    match data.result_type.as_str() {
        "scalar" => {
            let (_, text): (f64, String) =
                serde_json::from_value(data.result).map_err(|e| unreadable(e.to_string()))?;
            Ok(vec![Series { labels: BTreeMap::new(), value: number(&text)? }])
        }
        "vector" => {
            let vectors: Vec<Vector> = serde_json::from_value(data.result).map_err(|e| unreadable(e.to_string()))?;
            if vectors.len() > SERIES_MAX {
                return Err(QueryError::TooMany(vectors.len()));
            }
            let series = |one: Vector| Ok(Series { labels: one.metric, value: number(&one.value.1)? });
            vectors.into_iter().map(series).collect()
        }
        other => Err(QueryError::Kind(other.to_owned())),
    }
}

/// The one value of an answer.
///
/// # Errors
/// What is there instead.
pub fn one_value(series: &[Series]) -> Result<f64, Missing> {
    match series {
        [] => Err(Missing::Empty),
        [one] if one.value.is_finite() && one.value >= 0.0 => Ok(one.value),
        [_] => Err(Missing::NotANumber),
        many => Err(Missing::Many(many.len())),
    }
}

/// The instances that an answer names: values of `label` of all series whose value is neither zero nor no number. No series
/// names nobody, which is an answer.
pub fn instances(series: Vec<Series>, label: &str) -> BTreeSet<String> {
    let bad = series.into_iter().filter(|one| one.value != 0.0 && !one.value.is_nan());
    bad.filter_map(|mut one| one.labels.remove(label)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let vector =
            |result: &str| format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{result}]}}}}"#);
        for (what, status, body, want) in [
            ("one", 200, vector(r#"{"metric":{},"value":[1.5,"12.5"]}"#), Ok(12.5)),
            (
                "scalar",
                200,
                r#"{"status":"success","data":{"resultType":"scalar","result":[1,"3"]}}"#.to_owned(),
                Ok(3.0),
            ),
            ("zero is a value", 200, vector(r#"{"metric":{},"value":[1,"0"]}"#), Ok(0.0)),
            ("none", 200, vector(""), Err("no series")),
            ("NaN", 200, vector(r#"{"metric":{},"value":[1,"NaN"]}"#), Err("not a number")),
            ("infinite", 200, vector(r#"{"metric":{},"value":[1,"+Inf"]}"#), Err("not a number")),
            ("below zero", 200, vector(r#"{"metric":{},"value":[1,"-1"]}"#), Err("not a number")),
            (
                "two",
                200,
                vector(r#"{"metric":{"a":"1"},"value":[1,"1"]},{"metric":{"a":"2"},"value":[1,"2"]}"#),
                Err("2 series"),
            ),
            (
                "refused",
                400,
                r#"{"status":"error","errorType":"bad_data","error":"parse error"}"#.to_owned(),
                Err("bad_data: parse error"),
            ),
            ("a proxy's page", 502, "<html>".to_owned(), Err("status 502")),
            ("text for a number", 200, vector(r#"{"metric":{},"value":[1,"x"]}"#), Err("is no number")),
            (
                "matrix",
                200,
                r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#.to_owned(),
                Err("a matrix"),
            ),
        ] {
            let found = read(status, body.as_bytes()).map_err(|error| error.to_string());
            let found = found.and_then(|series| one_value(&series).map_err(|why| why.to_string()));
            match (&found, want) {
                (Ok(value), Ok(want)) => assert_eq!(*value, want, "{what}"),
                (Err(why), Err(part)) => assert!(why.contains(part), "{what}: {why}"),
                _ => panic!("{what}: {found:?}"),
            }
        }
    }

    #[test]
    fn instances_are_those_that_are_bad_now() {
        let series = |name: &str, value| Series { labels: [("instance".into(), name.into())].into(), value };
        let answer = vec![series("a", 1.0), series("b", 0.0), series("c", f64::NAN), series("d", 99.5)];
        let unnamed = Series { labels: BTreeMap::new(), value: 1.0 };
        let answer = answer.into_iter().chain([unnamed]).collect();
        assert_eq!(instances(answer, "instance"), ["a".to_owned(), "d".to_owned()].into());
        assert_eq!(instances(Vec::new(), "instance"), BTreeSet::new());
    }
}
