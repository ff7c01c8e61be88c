//! etcd's own endpoints manager (`clientv3/naming/endpoints`), which grpc-go resolves:
//! `<service>/<address or id>`.

use serde_json::Value;

use super::fields::{Fields, flat, number, weight_in};
use super::registration::{Decoded, Ignored, InvalidValue, Place};

/// A registration that marks itself as removed.
const DELETE: i64 = 1;

/// Whether the value has the fields of an update. `Weight` is no field of it.
pub(super) fn recognizes(fields: Fields<'_>) -> bool {
    fields.has("Addr") && (fields.has("Op") || fields.has("Metadata") && !fields.has("Weight"))
}

pub(super) fn read(place: &Place<'_>, value: &Value, ignored: &mut Ignored) -> Decoded {
    let fields = Fields::of(value)?;
    let operation = fields.get("Op");
    match operation.map(number) {
        Some(Some(DELETE)) => return Ok(Vec::new()),
        Some(None) => ignored.push("Op is not a number"),
        _ => {}
    }
    let address = fields.text("Addr").ok_or(InvalidValue::Invalid("no Addr"))?;
    let mut instance = place.instance(address.parse()?)?;
    // Whatever the program stores; often null.
    let metadata = fields.get("Metadata");
    if let Some(weight) = weight_in(metadata, ignored) {
        instance = instance.with_weight(weight);
    }
    Ok(vec![instance.with_metadata(flat(metadata))])
}

#[cfg(test)]
mod tests {
    use super::super::ValueFormat;
    use super::super::tests::{ignored, instance, metadata, read};
    use crate::balancer::Weight;

    #[test]
    fn metadata_may_be_anything() {
        for (metadata, weight) in [
            ("null", 1),
            (r#""text""#, 1),
            ("[1]", 1),
            (r#"{"weight":"5"}"#, 5),
            (r#"{"weight":{}}"#, 1),
        ] {
            let value = format!(r#"{{"Op":0,"Addr":"10.0.0.5:80","Metadata":{metadata}}}"#);
            assert_eq!(
                read("s", ValueFormat::Grpc, "s/web/a", &value),
                format!("web: a=10.0.0.5:80*{weight}")
            );
        }
        let value = r#"{"Addr":"10.0.0.5:80","Metadata":{"zone":"a","canary":true,"nested":{"x":1}}}"#;
        let instance = instance(ValueFormat::Grpc, "s/web/a", value);
        assert_eq!(
            (metadata(&instance, "zone"), metadata(&instance, "canary")),
            (Some("a"), Some("true"))
        );
        assert_eq!(metadata(&instance, "nested"), None);
    }

    #[test]
    fn a_weight_above_the_range_is_the_largest_and_is_noted() {
        for weight in [i64::from(Weight::MAX.get()) + 1, i64::MAX] {
            let value = format!(r#"{{"Op":0,"Addr":"10.0.0.5:80","Metadata":{{"weight":{weight}}}}}"#);
            assert_eq!(instance(ValueFormat::Grpc, "s/web/a", &value).weight(), Weight::MAX);
            assert_eq!(ignored(ValueFormat::Grpc, "s/web/a", &value).len(), 1);
        }
    }

    #[test]
    fn an_operation_that_is_no_number_adds() {
        let value = r#"{"Op":"x","Addr":"10.0.0.5:80","Metadata":null}"#;
        assert_eq!(read("s", ValueFormat::Grpc, "s/web/a", value), "web: a=10.0.0.5:80*1");
        assert_eq!(ignored(ValueFormat::Grpc, "s/web/a", value), ["Op is not a number"]);
    }

    #[test]
    fn a_put_of_a_deletion_is_a_deletion() {
        let value = r#"{"Op":1,"Addr":"10.0.0.5:80","Metadata":null}"#;
        assert_eq!(read("s", ValueFormat::Grpc, "s/web/a", value), "web:");
        assert_eq!(read("s", ValueFormat::Auto, "s/web/a", value), "web:");
    }
}
