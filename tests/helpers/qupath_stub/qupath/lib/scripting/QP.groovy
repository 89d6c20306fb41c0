package qupath.lib.scripting

import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import javax.imageio.ImageIO

/** What the scripts use of QuPath, for one image that a JSON file describes; what they leave there is written back. */
class QP {
    static final File file = new File(System.getenv("QUPATH_STUB"))
    static final Map told = new JsonSlurper().parse(file, "UTF-8")
    static final Thing selected = new Thing(kind: "annotation", rings: [told.region])
    static List detections = told.nuclei.collect { new Thing(kind: "detection", rings: it) }

    static Thing getSelectedObject() { selected }
    static QP getCurrentServer() { new QP() }
    static QP getCurrentHierarchy() { new QP() }
    static void fireHierarchyUpdate() {
        def left = (detections + selected.children).collect { [rings: it.rings, measurements: it.measurements] }
        file.setText(JsonOutput.toJson(told + [left: left]), "UTF-8")
    }

    String getPath() { told.image }
    QP getMetadata() { this }
    String getName() { new File(told.image).getName() }
    List getURIs() { [new File(told.image).toURI()] }
    QP getPixelCalibration() { this }
    double getAveragedPixelSizeMicrons() { told.mpp == null ? Double.NaN : told.mpp as double }
    def readRegion(request) {
        return ImageIO.read(new File(told.image)).getSubimage(request.x, request.y, request.width, request.height)
    }
    List getDetectionObjects() { detections }
    List getAnnotationObjects() { [selected] }
    void addObjects(Collection more) { detections.addAll(more) }
    void removeObjects(Collection some, boolean keepChildren) { detections.removeAll(some) }
}
