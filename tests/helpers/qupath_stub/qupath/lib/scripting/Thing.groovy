package qupath.lib.scripting

/** An object, its ROI and its geometry in one: rings of points, the first of which counts. */
class Thing {
    String kind
    List rings
    Map measurements = [:]
    List children = []

    boolean isAnnotation() { kind == "annotation" }
    boolean isDetection() { kind == "detection" }
    boolean isCell() { false }
    boolean hasChildObjects() { !children.isEmpty() }
    boolean isArea() { true }
    Map getMeasurementList() { measurements }
    Thing getROI() { this }
    Thing getGeometry() { this }
    int getNumGeometries() { 1 }
    Thing getGeometryN(int n) { this }
    Thing getExteriorRing() { this }
    Object[] getCoordinates() { rings[0].collect { [x: it[0] as double, y: it[1] as double] } as Object[] }
    List getBox() {
        def (xs, ys) = [rings[0].collect { it[0] }, rings[0].collect { it[1] }]
        return [xs.min(), ys.min(), xs.max() - xs.min(), ys.max() - ys.min()]
    }
    double getArea() { box[2] * box[3] }
    double getCentroidX() { box[0] + box[2] / 2 }
    double getCentroidY() { box[1] + box[3] / 2 }
    boolean contains(double x, double y) {
        return x >= box[0] && y >= box[1] && x < box[0] + box[2] && y < box[1] + box[3]
    }
    List getChildObjects() { children }
    void addChildObjects(Collection more) { children.addAll(more) }
    void removeChildObjects(Collection some) { children.removeAll(some) }
}
