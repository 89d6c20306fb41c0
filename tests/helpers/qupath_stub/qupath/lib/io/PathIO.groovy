package qupath.lib.io

import groovy.json.JsonSlurper
import qupath.lib.scripting.Thing

class PathIO {
    static List readObjectsFromGeoJSON(InputStream text) {
        return new JsonSlurper().parse(text, "UTF-8").features.collect {
            assert it.properties.objectType == "detection"
            return new Thing(kind: "detection", rings: it.geometry.coordinates, measurements: it.properties.measurements)
        }
    }
}
