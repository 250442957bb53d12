//! ListMetricDescriptors.

use criox_cri::v1;

use super::Services;

pub(super) fn list_metric_descriptors(services: &Services) -> v1::ListMetricDescriptorsResponse {
    v1::ListMetricDescriptorsResponse { descriptors: services.lifecycle.metric_descriptors() }
}
